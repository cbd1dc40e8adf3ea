"""Processes of the tests that begin with their libraries imported.

To import Prefect, MLflow, BentoML, PyTorch or vLLM is most of what a start of them costs where
models are tiny, and a test run starts hundreds. So one process imports them, an *origin*
(`origin`), and every start that is asked for is a copy of it, by `fork`, which then goes on as the
command that was to be started (`exec_with_imports`). All else is the copy's own: command line and
environment, in /proc too, folder, output, session, signals and end.

A test asks for nothing: within `with WarmServices(...)`, and so where a fixture of this name is
used, what `weighbridge.core.processes` starts of this kind begins warm (`starts`), all else as it
does anyway. All workers of a test run share its origins: the first that needs one begins it, and it
ends with the test run. What an origin has to say is in NAME.log in the folder of the test run.

=====================  ============================================================================
`services`             Prefect's server, MLflow's, the deployer, Bentos, and a supervisord, whose
                       programs begin as copies of itself (`service_copies`, `bento_worker`)
`scripts`              our scripts for other environments: optimizers, and the making of a Bento
`engines`              servers of engines on a processor
`training`             fine-tunes in processes, with all their ranks (`torchrun_ranks`)
`command`              the `weighbridge` command, and all of the above that it starts
`xdist_worker`         the workers of `make test`, of a process that has collected the tests
=====================  ============================================================================

Some begin as a user's do, so that the real way is tested too: all that tests/test_packaging.py and
tests/serving/bento start, the first release of tests/flows, the first model of
tests/tasks/optimizers/test_compressed_tensors.py, a run and its server in
tests/flows/test_prefect_server.py, the engine that the conformance suite has end with its parent.
"""
