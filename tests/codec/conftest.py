from hypothesis import HealthCheck, settings

# A busy machine is slow; that is not what these tests are about.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
