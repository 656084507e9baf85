"The commands, what a run will cost, and the course."
