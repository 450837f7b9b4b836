#!/usr/bin/env bash
# An MLflow server for a team: runs and users in PostgreSQL, a login for everything, and only the routes of
# pipeline/server/routes.txt. docs/server.md says how to set it up, and who is trusted with what.
#
#     cp examples/server.env.example server.env && chmod 600 server.env     # and fill it in
#     examples/server.sh server.env
#
# Passwords stay in the environment, so the process list shows none.
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

# The allow list closes the routes of all these already; each switch closes a feature once more, inside MLflow.
export MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false
export MLFLOW_BASIC_AUTH_FAIL_CLOSED=true
export MLFLOW_ENABLE_AI_GATEWAY=false
export MLFLOW_ENABLE_ASSISTANT_SANDBOX=true # commands never run outside a container; the assistant is closed anyway
export MLFLOW_ENABLE_REMOTE_ASSISTANT=false
export MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE=false
export MLFLOW_SERVER_ENABLE_CUSTOM_SCORERS=false
export MLFLOW_SERVER_ENABLE_GRAPHQL_AUTH=true
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
export MLFLOW_SERVER_JOB_ENABLE_PERIODIC_TASKS=false
export MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true
unset MLFLOW_STATIC_PREFIX _MLFLOW_STATIC_PREFIX

umask 077
MLFLOW_AUTH_CONFIG_PATH=$(realpath "$settings").ini # MLflow reads the users' database only from a file
export MLFLOW_AUTH_CONFIG_PATH
cat >"$MLFLOW_AUTH_CONFIG_PATH" <<INI
[mlflow]
default_permission = READ
database_uri = ${MLFLOW_BACKEND_STORE_URI//%/%%}
# Each file of a model is a request, and a password is slow to check on purpose.
auth_cache_ttl_seconds = 10
INI

# MLflow does this itself only for `--app-name basic-auth`: one clear error here, not one per worker without end.
python -c 'from mlflow.server import auth; auth.get_flask_server_secret_key(); auth.bootstrap_admin_user()'
export _MLFLOW_AUTH_ADMIN_BOOTSTRAPPED=true
# Without these options uvicorn would take the client's address from X-Forwarded-For, and accept websockets.
exec mlflow server --app-name team --uvicorn-opts "--no-proxy-headers --ws none"
