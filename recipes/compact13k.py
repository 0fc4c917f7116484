"""`compact13k`: 13,808 parameters, twenty epochs of plain SGD without augmentation.

Documented: parameter count, batch norm, dropout; the layers and the regime are the published script's: SGD lr 0.01,
momentum 0.9, constant; batch 64; 20 epochs; normalised by 0.1307 and 0.3081.

Gaps and contradictions, and what this recipe does:
- "Best approximately 99.46 % on the validation set": that set is the test set, the best of twenty looks at it, and the
  log beside it never shows 99.46: best 99.44 (epoch 15), last 99.41. The last epoch is what counts here; the claim is
  reported beside it all the same.
- Also from the log and held against: 98.32 % after epoch 1, test losses of 0.0528 and 0.0186 after epochs 1 and 20.
  Its training accuracies (93.31 and 99.31 %) are not: with dropout, as it counted them is not said.
- The log's range over its last ten epochs, 99.31 to 99.44, is what a faithful copy should land in.
- Dropout stands element-wise (`Dropout`, not `Dropout2d`) after each 3×3 convolution's batch norm, as in the script.

Measured on the test images after epoch 20, mean of 3 seeds: 99.38 ± 0.03 % (99.35, 99.37, 99.41), by
    python -m mnist_accel verify recipe=compact13k threads=1 seeds=3
After epoch 1 98.11 % (97.64 to 98.64); test loss after epoch 20 0.0198. So three seeds do not reach 99.46, and fall
where the log's last ten epochs do.
"""

from mnist_accel.recipe import Claim, Measured, Recipe

RECIPE = Recipe(
    name="compact13k",
    model="compact13k",
    epochs=20,
    batch_size=64,
    optimizer="sgd",
    lr=0.01,
    momentum=0.9,
    dropout=0.1,
    claims=(
        Claim(metric="parameters", relation="=", value=13_808),
        Claim(metric="accuracy", relation=">=", value=99.46, note="best of its log, approximately"),
        Claim(metric="accuracy", relation=">=", value=99.41, epoch=20, note="its log"),
        Claim(metric="accuracy", relation=">=", value=98.32, epoch=1, note="its log"),
        Claim(metric="test_loss", relation="<=", value=0.0528, epoch=1, note="its log"),
        Claim(metric="test_loss", relation="<=", value=0.0186, epoch=20, note="its log"),
    ),
    measured=Measured(
        accuracy=99.38,
        seeds=3,
        spread=0.03,
        command="python -m mnist_accel verify recipe=compact13k threads=1 seeds=3",
    ),
)
