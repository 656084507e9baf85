"How far samples are from data and from a teacher: metrics, intervals, pictures."
