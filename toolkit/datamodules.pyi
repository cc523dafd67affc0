from datamodules import *  # the folder beside this one, imported as toolkit.datamodules
