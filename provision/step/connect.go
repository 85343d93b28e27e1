package step

import (
	"context"
	"errors"

	"muster/provision/inventory"
	"muster/provision/remote"
)

// Connect opens the one connection to the host that all later steps use.
func Connect(ctx context.Context, h *Host) error {
	conn, err := h.Dial(ctx)
	if err != nil {
		return err
	}
	h.Remote = conn
	return nil
}

// Dial opens a connection to the host, between the hooks for that.
func (h *Host) Dial(ctx context.Context) (*remote.Host, error) {
	if err := h.run.hook(ctx, before+"connect", h); err != nil {
		return nil, err
	}
	conn, err := h.run.Dialer.Dial(ctx, target(h.Host))
	if err != nil {
		return nil, err
	}
	if err := h.run.hook(ctx, after+"connect", h); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

func target(h inventory.Host) remote.Target {
	return remote.Target{
		Name:         h.Name,
		Address:      h.Address,
		Port:         h.SSH.Port,
		User:         h.SSH.User,
		IdentityFile: h.SSH.IdentityFile,
		HostKey:      h.SSH.HostKey,
		Bastion:      bastion(h.SSH.Bastion),
	}
}

func bastion(s *inventory.SSH) *remote.Target {
	if s == nil {
		return nil
	}
	return &remote.Target{
		Name:         s.Address,
		Address:      s.Address,
		Port:         s.Port,
		User:         s.User,
		IdentityFile: s.IdentityFile,
		HostKey:      s.HostKey,
		Bastion:      bastion(s.Bastion),
	}
}
