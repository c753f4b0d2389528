"""Numbers from arrays: of images and of pixels."""
