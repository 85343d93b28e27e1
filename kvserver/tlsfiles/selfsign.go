package tlsfiles

import (
	"errors"
	"fmt"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.uber.org/zap"
)

// SelfSign fills in a certificate for the hosts (host:port) where Auto asks for
// one and none is given. It is made in dir, for so many years, unless one from
// an earlier start is there. Nobody can verify it: it encrypts, no more.
func (f Files) SelfSign(dir string, hosts []string, years uint) (Files, error) {
	if !f.Auto || f.Enabled() {
		return f, nil
	}
	if years == 0 {
		return f, errors.New("--self-signed-cert-validity is 0; write the years for which the certificates are to be valid")
	}
	made, err := transport.SelfCert(zap.NewNop(), dir, hosts, years)
	if err != nil {
		return f, fmt.Errorf("make a certificate in %s: %w", dir, err)
	}
	f.Cert, f.Key, f.Unverified = made.CertFile, made.KeyFile, true
	return f, nil
}
