"""Measures the error of retrieving step by step, finds the best full steps, and tries them.

images            the run's images, with any cache
baseline          those with every step full, and the calls of the U-Net in them
influence         how much the result changes with the U-Net's output at each step
step_errors       how much the predicted noise changes with the feature, measured
forecast_errors   the same for extrapolated features, from distances between features
search            the full steps with the least sum of errors
measure           all of that for one branch
cost              the MACs of its steps
candidates        the resulting schedules, tried on held-out images
goals             the best of them for a budget, or a quality
kinds             the predicted loss of a schedule that also has refresh and skipped steps
kinds_search      the schedule of four kinds with the least loss
kinds_measure     the measurements for that, and which schedules meet a budget or a quality
report            what is printed and written
"""
