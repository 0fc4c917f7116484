"""`is3_tuned`: the network of `is3` and its fifty epochs, in our own regime.

Its goal was 99.95 %, F1 99.75. Chosen on 10,000 held-out training images in a bare loop of the same parts, which is
not kept; fifteen epochs, one seed each; in brackets their cross-entropy in thousandths, since
0.01 % is one image there:
- AdamW, lr 0.004 in straight lines up and down, batch 128, weight decay 0.3, memories 0.9 and 0.99, dropout 0.3, a
  slant of 5° besides `is3`'s augmentation, and no weight average: 99.91 % (2.6), where `is3` has 99.87 after 20 to 25.
- Weight decay 1: 99.87 (5.0). Less augmentation (7°, 7 %): 99.89 (3.3).
- Weight decay 0.05, lr 0.002, batch 64, dropout 0.2: 99.90 (2.9); then with dropout 0.3 and more augmentation (15°,
  size by 20 %, a slant of 10°) 99.85 (4.7).
- Scoring shifted images as well: 99.91 again (2.9), so it is left out.

Measured on the test images, mean of 3 seeds: 99.90 ± 0.01 % (`is3`: 99.91), F1 99.49, by
    python -m mnist_accel verify recipe=is3_tuned threads=1 seeds=3
The goal is missed, and what was better on held-out images is not on these: 10, 10 and 11 wrong images, where `is3` has
8 to 10. Neither a weight average nor an end of the augmentation was tried.
"""

from dataclasses import replace

from mnist_accel.recipe import Claim, Measured
from recipes import is3

RECIPE = replace(
    is3.RECIPE,
    name="is3_tuned",
    batch_size=128,
    optimizer="adamw",
    lr=0.004,
    beta2=0.99,
    weight_decay=0.3,
    schedule="linear",
    ema=0.0,
    dropout=0.3,
    shear=5,
    claims=(Claim(metric="parameters", relation="=", value=144_833, note="its original's"),),
    measured=Measured(
        accuracy=99.9, seeds=3, spread=0.01, command="python -m mnist_accel verify recipe=is3_tuned threads=1 seeds=3"
    ),
)
