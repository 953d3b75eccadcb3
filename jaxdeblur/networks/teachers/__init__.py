"""Pre-trained deblurring networks whose output guides a fit, and their weights."""
