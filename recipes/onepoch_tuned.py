"""`onepoch_tuned`: the network of `onepoch` and its one epoch, in our own regime.

Changed, each chosen on 5,000 held-out training images (`validation=5000`, mean of 4 seeds and more; `onepoch` has
98.13 % there):
- Adam's memories 0.8 and 0.95 in place of 0.9 and 0.999: one epoch of 938 steps is too short for a mean over
  thousands. With them and without dropout 98.60 %, with 0.7 and 0.9 98.52, with 0.9 and 0.95 98.56.
- No dropout: an image that is seen once is not learned by heart.
- lr 0.02 in place of 0.03 and label smoothing 0.05 in place of 0.03: 98.63.
Not taken: batch 32 (98.34 to 98.42), Muon for the second convolution (98.55), a weight average (98.54).

Measured on the test images, mean of 20 seeds: 98.82 ± 0.07 % (`onepoch`: 98.54), by
    python -m mnist_accel verify recipe=onepoch_tuned seeds=20
"""

from dataclasses import replace

from mnist_accel.recipe import Claim, Measured
from recipes import onepoch

RECIPE = replace(
    onepoch.RECIPE,
    name="onepoch_tuned",
    lr=0.02,
    beta1=0.8,
    beta2=0.95,
    label_smoothing=0.05,
    dropout=0.0,
    claims=(Claim(metric="parameters", relation="=", value=9_606, note="its original's"),),
    measured=Measured(
        accuracy=98.82, seeds=20, spread=0.07, command="python -m mnist_accel verify recipe=onepoch_tuned seeds=20"
    ),
)
