package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// certificatesVariable names a directory with ca.crt, healthcheck-client.crt and
// healthcheck-client.key, which the client of version 3 presents when it is told
// nothing of certificates. The image of the server sets it, so that in a pod of
// kubeadm's making "etcdctl get /" needs no flags. etcd's own variables would not
// do: its client refuses a flag whose variable is set as well.
const certificatesVariable = "MUSTERCTL_CERTIFICATES"

// certificateFlags are the client's flags about certificates, and the files that
// stand for those that matter.
var certificateFlags = map[string]string{
	"cacert":                   "ca.crt",
	"cert":                     "healthcheck-client.crt",
	"key":                      "healthcheck-client.key",
	"insecure-transport":       "",
	"insecure-skip-tls-verify": "",
}

// presentCertificates sets the client's variables for its certificates, unless
// an argument or a variable is about them, or a file is not there.
func presentCertificates(args []string) error {
	dir := os.Getenv(certificatesVariable)
	if dir == "" || mentionsCertificates(args) {
		return nil
	}
	variables := map[string]string{}
	for flag, file := range certificateFlags {
		variable := "ETCDCTL_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
		if os.Getenv(variable) != "" {
			return nil
		}
		if file == "" {
			continue
		}
		path := filepath.Join(dir, file)
		if _, err := os.Stat(path); err != nil {
			return nil //nolint:nilerr // then there is nothing to present
		}
		variables[variable] = path
	}
	for variable, path := range variables {
		if err := os.Setenv(variable, path); err != nil {
			return err
		}
	}
	return nil
}

func mentionsCertificates(args []string) bool {
	if i := slices.Index(args, "--"); i >= 0 {
		args = args[:i]
	}
	return slices.ContainsFunc(args, func(arg string) bool {
		name, _, _ := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
		_, ok := certificateFlags[name]
		return ok && strings.HasPrefix(arg, "--")
	})
}
