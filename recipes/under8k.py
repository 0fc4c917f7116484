"""`under8k`: fewer than 8,000 parameters in twenty epochs. Our own network; its goal was 99.50 %.

Choices, made on held-out training images in a bare loop of the same parts, which is not kept, one seed each:
- With 10,000 held out, ten epochs, scored with shifts, this network has 99.46 %; at lr 0.02 with memories 0.8 and 0.95
  in place of 0.01 with 0.9 and 0.99 99.44. All twenty epochs were not tried there.
- Its forerunner has one convolution to 16 channels at full size, four separable ones at half of it, and batch norm
  inside these (7,914 parameters): 99.38 at lr 0.008 with 0.9 and 0.99, 99.33 at 0.02 with 0.8 and 0.95. Then label
  smoothing of 0 in place of 0.1 has 99.32, and more augmentation (15°, 10 %, 15 %, a slant of 10°) 99.28.
- Before that, with 5,000 held out, six epochs, two seeds, without shifts: the forerunner 99.28 (one seed), with 3×3
  kernels 99.24 (6,122 parameters) and 99.20 (7,442, wider, one seed); plain convolutions of 8 to 24 channels 99.18 to
  99.22; a first kernel of 5×5 at stride 2 98.78.
- Each test image is scored five times, as it is and shifted by one pixel each way: 0.1 points.

Measured on the test images, mean of 3 seeds: 99.55 ± 0.03 %, by
    python -m mnist_accel verify recipe=under8k threads=1 seeds=3
Published: 99.52 % for 7,918 parameters, best epoch of one run.
"""

from mnist_accel.recipe import Claim, Measured, Recipe

RECIPE = Recipe(
    name="under8k",
    model="under8k",
    epochs=20,
    batch_size=128,
    optimizer="adamw",
    lr=0.01,
    beta2=0.99,
    weight_decay=0.05,
    schedule="linear",
    label_smoothing=0.05,
    rotation=10,
    translation=0.08,
    scale=0.1,
    shear=5,
    test_shifts=1,
    dropout=0.0,
    claims=(
        Claim(metric="parameters", relation="=", value=7_834),
        Claim(metric="parameters", relation="<", value=8_000, note="budget"),
    ),
    measured=Measured(
        accuracy=99.55, seeds=3, spread=0.03, command="python -m mnist_accel verify recipe=under8k threads=1 seeds=3"
    ),
)
