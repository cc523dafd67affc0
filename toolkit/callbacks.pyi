from callbacks import *  # noqa: F403  (the folder beside this one)
