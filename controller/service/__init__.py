"""The controller at work: pools asked, limits written and guarded, questions answered."""
