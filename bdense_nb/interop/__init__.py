"Models of other libraries in, students for other libraries out."
from .diffusers import *
from .export import *
