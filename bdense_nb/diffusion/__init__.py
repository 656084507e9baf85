"Schedules, denoisers, samplers, networks and data; it knows nothing of training."
