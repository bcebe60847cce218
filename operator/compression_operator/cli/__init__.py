"""`compression`: validate, plan, render, run, status, logs, report, gc."""
