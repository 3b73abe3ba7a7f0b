"""Input images and label maps: what their files say, and whether they are what they say."""
