from datamodules import *  # noqa: F403  (the folder beside this one)
