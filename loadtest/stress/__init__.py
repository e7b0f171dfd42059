"""What has to hold under stress, each a script with a figure: overload, soak, same answers, growth of cost."""
