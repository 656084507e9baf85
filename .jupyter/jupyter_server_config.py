"Used by `make lab`: notebooks are cleaned when saved, so that a change shows only what was changed."
from nbdev.clean import clean_jupyter

c.ContentsManager.pre_save_hook = clean_jupyter  # noqa: F821 (Jupyter provides c)
