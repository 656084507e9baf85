"Used by `make lab`: it opens on the course's first page, and notebooks are cleaned when saved, so that a change shows only what was changed."

from nbdev.clean import clean_jupyter

c.LabApp.default_url = '/lab/tree/nbs/index.ipynb'  # noqa: F821 (Jupyter provides c)
c.ContentsManager.pre_save_hook = clean_jupyter  # noqa: F821
