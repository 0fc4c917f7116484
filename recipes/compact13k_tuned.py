"""`compact13k_tuned`: the network of `compact13k` and its twenty epochs, in our own regime.

Its goal was 99.55 %. Changed, as the other tuned recipes suggest, and tried on 5,000 held-out training images in a
bare loop of the same parts, which is not kept; one seed, no alternatives:
- AdamW with memories 0.8 and 0.95, lr 0.01 in straight lines up and down, batch 128, label smoothing 0.1; no dropout,
  but a rotation of 10°, 8 % of translation, 10 % of size and a slant of 5°: 99.42 % (five epochs of it: 99.16).
- Each test image is scored five times, as it is and shifted by one pixel each way: 99.52 %.

Measured on the test images, mean of 3 seeds: 99.56 ± 0.03 %, 95 % interval 99.48 to 99.63 (`compact13k`:
99.38), by
    python -m mnist_accel verify recipe=compact13k_tuned threads=1 seeds=3
"""

from dataclasses import replace

from mnist_accel.recipe import Claim, Measured
from recipes import compact13k

RECIPE = replace(
    compact13k.RECIPE,
    name="compact13k_tuned",
    batch_size=128,
    optimizer="adamw",
    lr=0.01,
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
    claims=(Claim(metric="parameters", relation="=", value=13_808, note="its original's"),),
    measured=Measured(
        accuracy=99.56,
        seeds=3,
        spread=0.03,
        command="python -m mnist_accel verify recipe=compact13k_tuned threads=1 seeds=3",
    ),
)
