"""`sub20k_tuned`: the network of `sub20k` and its nineteen epochs, in our own regime.

Its goal was 99.60 %. Chosen on 5,000 held-out training images in a bare loop of the same parts, which is not kept, all
nineteen epochs, one seed each (`sub20k` has 99.36 there):
- AdamW with memories 0.9 and 0.99 in straight lines up and down, weight decay 0.05, label smoothing 0.05; no dropout,
  but a rotation of 10°, 8 % of translation, 10 % of size and a slant of 5°: 99.48 %.
- Memories 0.8 and 0.95 with smoothing 0.1: 99.48 as well; `sub20k`'s dropout besides: 99.36.
- Scoring shifted images as well: 99.46, 99.44 and 99.44 of these three, so it is left out.

Measured on the test images, mean of 3 seeds: 99.63 ± 0.03 % (`sub20k`: 99.55), by
    python -m mnist_accel verify recipe=sub20k_tuned threads=1 seeds=3
"""

from dataclasses import replace

from mnist_accel.recipe import Claim, Measured
from recipes import sub20k

RECIPE = replace(
    sub20k.RECIPE,
    name="sub20k_tuned",
    beta2=0.99,
    weight_decay=0.05,
    schedule="linear",
    label_smoothing=0.05,
    dropout=0.0,
    rotation=10,
    translation=0.08,
    scale=0.1,
    shear=5,
    claims=(Claim(metric="parameters", relation="=", value=19_712, note="its original's"),),
    measured=Measured(
        accuracy=99.63,
        seeds=3,
        spread=0.03,
        command="python -m mnist_accel verify recipe=sub20k_tuned threads=1 seeds=3",
    ),
)
