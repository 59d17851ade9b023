"""What the document says about neurons and gradients, computed."""
