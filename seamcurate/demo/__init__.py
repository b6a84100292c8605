"""The demo: data, models, scores, a split and exports, all made in one folder."""
