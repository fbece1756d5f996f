"""What retrieving costs, measured step by step; the full steps with the least of it; and how good they are.

images            the run's images, with any cache
baseline          those with every step full, and the calls of the U-Net in them
influence         how far the result moves with the U-Net's output at each step
step_errors       how far the predicted noise moves with the feature, measured
forecast_errors   the same for extrapolated features, from distances between features
search            the full steps with the least sum of errors
measure           all of that for one branch
cost              what its steps cost in MACs
candidates        schedules that come of it, tried on held-out images
goals             which of them meets a budget, or a quality, best
kinds             what a schedule with refresh and skipped steps too is predicted to lose
kinds_search      the schedule of four kinds with the least of it
kinds_measure     what that goes by, measured, and which schedules meet a budget or a quality
report            what is printed and written
"""
