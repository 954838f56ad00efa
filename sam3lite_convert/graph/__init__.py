"""ONNX graphs over the tensors of a converted folder: written node by node, cut at taps, told from others; run nowhere.

Everything here but ``weights`` needs the extra ``onnx``.
"""
