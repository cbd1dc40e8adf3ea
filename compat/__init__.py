"""Would the newest release of anything we depend on break us? Found out in throw-away environments.

::

    locked_environments.py   what is checked: the control plane, every engine's and optimizer's
        environment, their contracts
    resolution.py            which versions the package index would give, and what keeps the newest
        ones out
    throwaway.py             an environment moved from version to version, removed at the end
    trials.py                contracts run with one set of versions after another
    attribution.py           which package's update breaks which contract
    check.py                 all of it, one locked environment after another
    report.py                what came out, as a table and as Markdown for an issue
"""
