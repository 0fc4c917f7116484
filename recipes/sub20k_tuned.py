"""`sub20k_tuned`: the network of `sub20k` and its nineteen epochs, in our own regime.

Changed, each chosen on 5,000 held-out training images in a bare loop of the same parts, one seed:
- AdamW with memories 0.8 and 0.95 in straight lines up and down, weight decay 0.05, label smoothing 0.1; no dropout,
  but a rotation of 10°, 8 % of translation, 10 % of size and a slant of 5°: five such epochs reach 99.36 %, what
  `sub20k` reaches there in all its nineteen.
- Each test image is scored five times, as it is and shifted by one pixel each way: 99.38 %.
"""

from dataclasses import replace

from mnist_accel.recipe import Claim
from recipes import sub20k

RECIPE = replace(
    sub20k.RECIPE,
    name="sub20k_tuned",
    beta1=0.8,
    beta2=0.95,
    weight_decay=0.05,
    schedule="linear",
    label_smoothing=0.1,
    dropout=0.0,
    rotation=10,
    translation=0.08,
    scale=0.1,
    shear=5,
    test_shifts=1,
    claims=(Claim(metric="parameters", relation="=", value=19_712, note="its original's"),),
    measured=None,
)
