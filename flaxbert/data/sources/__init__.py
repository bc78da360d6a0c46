"""Where rows come from: own files, hub data sets, the tasks that bring their own."""
