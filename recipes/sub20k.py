"""`sub20k`: nine convolutions and no fully connected layer, under 20,000 parameters, above 99.4 % in under 20 epochs.

Documented: the layers in order with their 19,712 parameters; fewer than 20 epochs, so at most 19; above 99.4 %, and
99.44 % at epoch 8; a model size of 1.35 MB.
Silent on: optimizer, learning rate, batch size, augmentation.

Choices, made on 5,000 held-out training images (`validation=5000`):
- AdamW with one cycle to 0.01 over all 19 epochs, weight decay 0.01, batch 128, rotation ±7° and translation ±5 %:
  99.36 % there after the last epoch (1 seed).
- The claim for epoch 8 is reported, but one cycle over 19 epochs is still at a high learning rate there: it is made to
  be best at the end. `epochs=8` runs a cycle of eight.
- 1.35 MB is a summary tool's figure that counts activations; the weights alone take 80 kB. It is not held against.

Measured on the test images, mean of 3 seeds: 99.55 ± 0.03 % after epoch 19 (p 0.007 against 99.4), 99.26 % after
epoch 8, by
    python -m mnist_accel verify recipe=sub20k threads=1 seeds=3
"""

from mnist_accel.recipe import Claim, Measured, Recipe

RECIPE = Recipe(
    name="sub20k",
    model="sub20k",
    epochs=19,
    batch_size=128,
    optimizer="adamw",
    lr=0.01,
    weight_decay=0.01,
    schedule="onecycle",
    dropout=0.1,
    rotation=7,
    translation=0.05,
    claims=(
        Claim(metric="parameters", relation="=", value=19_712),
        Claim(metric="parameters", relation="<", value=20_000, note="budget"),
        Claim(metric="accuracy", relation=">", value=99.4),
        Claim(metric="accuracy", relation=">=", value=99.44, epoch=8),
    ),
    measured=Measured(
        accuracy=99.55, seeds=3, spread=0.03, command="python -m mnist_accel verify recipe=sub20k threads=1 seeds=3"
    ),
)
