"""Would the newest release of anything we depend on break us? Found out in throw-away environments.

::

    subjects.py      what is checked: the control plane, every engine's and optimizer's environment,
        their contracts
    resolution.py    which versions the package index would give, and what keeps the newest ones out
    throwaway.py     an environment for one subject, moved from version to version, removed at the
        end
    attribution.py   which package's update breaks which contract
    check.py         all of it, subject by subject
    report.py        what came out, as a table and as Markdown for an issue
"""
