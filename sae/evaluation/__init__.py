"""How good an autoencoder is: its inference threshold, reconstruction metrics, and the loss recovered in the model."""
