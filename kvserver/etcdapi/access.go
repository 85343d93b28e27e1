package etcdapi

import (
	"context"
	"errors"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"muster/kvserver/machine"
	"muster/kvserver/machine/auth"
	"muster/kvserver/token"
)

// Access is how clients say who they are.
type Access struct {
	Tokens token.Provider
	// ClientCertAuth takes the common name of a client's certificate for its
	// user, unless it shows a token.
	ClientCertAuth bool
	// BcryptCost is the strength of the hashes of passwords, 4 to 31.
	BcryptCost int
}

// gatewayHeader is set by the JSON gateway, whose connection has a certificate
// of the server and not of the client.
const gatewayHeader = "grpcgateway-accept"

// identity finds out who a request comes from; nobody, which is the zero
// Identity, while auth is not enabled. The error is token.ErrInvalid, or that
// of catching up.
func (a *api) identity(ctx context.Context) (auth.Identity, error) {
	if !a.store.Auth().Enabled() {
		return auth.Identity{}, nil
	}
	md, ok := metadata.FromIncomingContext(ctx)
	if !ok {
		return auth.Identity{}, nil
	}
	for _, name := range []string{rpctypes.TokenFieldNameGRPC, rpctypes.TokenFieldNameSwagger} {
		if shown := md.Get(name); len(shown) > 0 {
			return a.access.Tokens.Owner(ctx, strings.TrimPrefix(shown[0], "Bearer "), a.authRevision)
		}
	}
	// With the certificate of the gateway everybody on the network would be
	// whoever that names (CVE-2018-16886).
	if !a.access.ClientCertAuth || len(md.Get(gatewayHeader)) > 0 {
		return auth.Identity{}, nil
	}
	revision := a.authRevision()
	if name, ok := certifiedName(ctx); ok {
		return auth.Identity{User: name, Revision: revision}, nil
	}
	return auth.Identity{}, nil
}

func (a *api) authRevision() uint64 { return a.store.Auth().Revision() }

// certifiedName is the common name in the client's certificate, if it showed
// one that the trusted CA signed.
func certifiedName(ctx context.Context) (string, bool) {
	from, ok := peer.FromContext(ctx)
	if !ok {
		return "", false
	}
	info, ok := from.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return "", false
	}
	for _, chain := range info.State.VerifiedChains {
		if len(chain) > 0 {
			return chain[0].Subject.CommonName, true
		}
	}
	return "", false
}

// permittedRead has read run if check permits it, and keeps what was read from
// a client whose permissions changed meanwhile.
func (a *api) permittedRead(ctx context.Context, check func(auth.Rights) error, read func() error) error {
	who, err := a.identity(ctx)
	if err != nil {
		return err
	}
	if err := check(a.store.Auth().Of(who)); err != nil {
		return err
	}
	if err := read(); err != nil {
		return err
	}
	if who.Revision == 0 {
		return nil
	}
	return a.stillAt(who.Revision)
}

// stillAt returns auth.ErrAuthOldRevision once something changed after the
// auth revision.
func (a *api) stillAt(revision uint64) error {
	if revision != a.authRevision() {
		return auth.ErrAuthOldRevision
	}
	return nil
}

// mayWatch tells whether a client may watch the range, as it asked for it: an
// end of "\x00" has no upper end, and an empty key is the first one. Taking
// that end for none would let whoever may read one key watch all that follow
// (CVE-2026-73499). The stream goes on: its context has the identity.
func (a *api) mayWatch(ctx context.Context, r *pb.WatchCreateRequest) error {
	who, err := a.identity(ctx)
	if err != nil {
		return err
	}
	key := r.GetKey()
	if len(key) == 0 {
		key = []byte{0}
	}
	return a.store.Auth().Of(who).Read(key, r.GetRangeEnd())
}

// mayUseLeases asks for what every key attached to the leases needs before
// they are renewed or shown; root may always.
func (a *api) mayUseLeases(ctx context.Context, ids []int64, permits func(rights auth.Rights, key []byte) error) error {
	if !a.store.Auth().Enabled() {
		return nil
	}
	who, err := a.identity(ctx)
	if err != nil {
		return err
	}
	if err := authenticated(who); err != nil {
		return err
	}
	if a.store.Auth().Of(who).Administer() == nil {
		return nil
	}
	// The keys may have been attached on another member.
	if err := a.awaitRead(ctx, false); err != nil {
		return err
	}
	rights := a.store.Auth().Of(who)
	for _, id := range ids {
		keys, err := a.store.Leases().Keys(id)
		if err != nil && !errors.Is(err, machine.ErrLeaseNotFound) {
			return err
		}
		for _, key := range keys {
			if err := permits(rights, key); err != nil {
				return err
			}
		}
	}
	return nil
}

func mayRead(rights auth.Rights, key []byte) error { return rights.Read(key, nil) }

func mayPut(rights auth.Rights, key []byte) error {
	return rights.Put(&pb.PutRequest{Key: key}, nil) // without a lease
}

// authenticated returns auth.ErrUserEmpty for nobody.
func authenticated(who auth.Identity) error {
	if who == (auth.Identity{}) {
		return auth.ErrUserEmpty
	}
	return nil
}
