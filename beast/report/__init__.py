"""What a run says about itself: logs, TensorBoard, the console, a timeline; and files that are written whole."""
