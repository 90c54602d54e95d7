#!/bin/sh
exec /opt/portcullis/bin/pre-job
