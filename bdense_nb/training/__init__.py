"The loop that trains anything, its checkpoints and its devices; it knows nothing of diffusion."
from .config import *
from .checkpoints import *
from .devices import *
from .hooks import *
from .loop import *
