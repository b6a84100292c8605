"""What leaves a store: exports for trainers, repositories of the Hub, and runs made again and compared."""
