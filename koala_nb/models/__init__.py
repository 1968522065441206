"""A name -> a diffusers pipeline; a configuration -> a counted U-Net."""
