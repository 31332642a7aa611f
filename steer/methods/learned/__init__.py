"""Methods whose edit is learned by gradients through the model, from the site on."""
