"Experiments, search, and what one looks at: needs the extra `lab`."
