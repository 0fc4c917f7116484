"""`efficient25k_tuned`: the network of `efficient25k` and its one epoch, in our own regime.

Changed, each chosen on 5,000 held-out training images (`validation=5000`, mean of 3 to 6 seeds):
- A learning rate that rises and falls to zero, in place of a constant one; no rotation, no translation, no dropout:
  with SGD, lr 0.2, Nesterov's momentum and label smoothing 0.1 97.87 %.
- AdamW, lr 0.05, batch 64, memories 0.7 and 0.9: 98.58 % (0.8 and 0.95: 98.48; batch 32: 98.48; lr 0.03: 98.50;
  batch 128 at lr 0.03: 98.37).
- Each test image is scored five times, as it is and shifted by one pixel each way: 98.69 %.

Measured on the test images, mean of 20 seeds: 98.95 ± 0.06 % (`efficient25k`: 92.14), by
    python -m mnist_accel verify recipe=efficient25k_tuned seeds=20
"""

from dataclasses import replace

from mnist_accel.recipe import Claim, Measured
from recipes import efficient25k

RECIPE = replace(
    efficient25k.RECIPE,
    name="efficient25k_tuned",
    batch_size=64,
    optimizer="adamw",
    lr=0.05,
    beta1=0.7,
    beta2=0.9,
    weight_decay=0.05,
    schedule="linear",
    label_smoothing=0.1,
    dropout=0.0,
    rotation=0,
    translation=0,
    test_shifts=1,
    claims=(Claim(metric="parameters", relation="=", value=8_762, note="its original's"),),
    measured=Measured(
        accuracy=98.95, seeds=20, spread=0.06, command="python -m mnist_accel verify recipe=efficient25k_tuned seeds=20"
    ),
)
