"""The synthetic world: hidden findings, the pictures drawn from them, and the reports written about them."""
