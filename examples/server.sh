#!/usr/bin/env bash
# An MLflow server for a team: runs and users in PostgreSQL, a login for everything, known hosts and origins alone.
#
#     cp examples/server.env.example server.env && chmod 600 server.env     # and fill it in
#     examples/server.sh server.env
#
# Everyone with a login reads all runs and writes their own. Job execution and pickles, through which older servers ran
# foreign code, are off. Passwords stay in the environment: the process list shows none.
set -euo pipefail

settings=${1:?usage: examples/server.sh server.env}
if [ -n "$(find "$settings" -perm /077)" ]; then
    echo "error: $settings holds passwords and others can read it: chmod 600 $settings" >&2
    exit 1
fi
set -a
# shellcheck source=/dev/null
. "$settings"
set +a
for name in MLFLOW_BACKEND_STORE_URI MLFLOW_ARTIFACTS_DESTINATION MLFLOW_AUTH_ADMIN_USERNAME \
    MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY MLFLOW_HOST MLFLOW_PORT \
    MLFLOW_SERVER_ALLOWED_HOSTS MLFLOW_SERVER_CORS_ALLOWED_ORIGINS; do
    case ${!name:-} in
    "" | *CHANGE_ME*)
        echo "error: $settings: $name: expected a value of your own, found '${!name:-nothing}'" >&2
        exit 1
        ;;
    esac
done
case $MLFLOW_SERVER_ALLOWED_HOSTS$MLFLOW_SERVER_CORS_ALLOWED_ORIGINS in
*\**)
    echo "error: $settings: a * among hosts or origins lets every web page send requests" >&2
    exit 1
    ;;
esac

export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
export MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false
umask 077
MLFLOW_AUTH_CONFIG_PATH=$(realpath "$settings").ini # MLflow reads the users' database from a file alone
export MLFLOW_AUTH_CONFIG_PATH
cat >"$MLFLOW_AUTH_CONFIG_PATH" <<INI
[mlflow]
default_permission = READ
database_uri = ${MLFLOW_BACKEND_STORE_URI//%/%%}
INI
exec mlflow server --app-name basic-auth
