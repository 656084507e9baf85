"From a teacher to a student: branches, segments, losses, the hosts."
