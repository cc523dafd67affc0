from callbacks import *  # the folder beside this one, imported as toolkit.callbacks
