"""What neither the weights nor config.json tell: constants of the original detector."""

NORM_EPS = 1e-5  # of every norm outside the ViT and the text encoder, whose eps is in config.json
ROTARY_BASE = 10000.0
SINE_BASE = 10000.0
SINE_EPS = 1e-6  # keeps the last row of a position map below 2 pi
LOGIT_EPS = 1e-3  # nearer to 0 or 1, the logit of a box is cut
SCORE_LIMIT = 12.0
BIAS_SCALE = 8.0  # of the distances between cells and the edges of a box
PIXEL_MEAN = PIXEL_STD = 0.5
