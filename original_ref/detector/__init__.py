"""The reference detector: SAM3's image detector with its text student, on torch alone.

Written from a specification of the original's behaviour. Read ``model.py`` first: it is the whole pass.
"""

from original_ref.detector.constants import Heads
from original_ref.detector.load import load_detector
from original_ref.detector.model import Detections, Detector
from original_ref.detector.processor import Found, found, prepare, squared
from original_ref.detector.trunk import rotary_table

__all__ = ["Detections", "Detector", "Found", "Heads", "found", "load_detector", "prepare", "rotary_table", "squared"]
