"""What a trained network is like, beyond its accuracies: measurements that change nothing."""
